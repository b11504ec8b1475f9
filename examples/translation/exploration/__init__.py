"""Many ways of choosing heads of one trained model, compared by the loss after a short fine-tuning; `explore.py` is the command."""
