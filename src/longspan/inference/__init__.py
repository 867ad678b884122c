"""A trained model at work: loading, predicting, evaluating, attention weights."""
