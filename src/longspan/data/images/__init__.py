"""Images as long sequences: read from folders, arrays, published files and the Hub, and cut into pixels or patches."""
