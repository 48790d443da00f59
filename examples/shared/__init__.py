"""How the example models are made: one tokenizer, one way of writing lessons, one training loop, one judge."""
