"""`longspan-train` as a file, which a sweep starts once a job, and Lightning again for each further device."""

from longspan.training.train import main

if __name__ == "__main__":
    main()
