"""What a method, an encoder, a dataset and an evaluator fulfil, and the values that pass between them."""
