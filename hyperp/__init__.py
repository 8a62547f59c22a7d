"""Train with sphere optimizers under parametrization rules that hold a learning rate across scale."""
