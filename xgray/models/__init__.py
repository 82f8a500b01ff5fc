"""Models and tokenizers: find their weights, convert, load and run them."""
