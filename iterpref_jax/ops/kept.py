"""Names of a layer's results that the backward pass may find instead of making them again; `models.remat` picks."""

# What goes into a layer.
LAYER_INPUT = "layer_input"
# Attention's outputs, and the log-sum-exps that a kernel's backward pass reads.
ATTENTION = "attention"
# The products of an MLP (or of its experts) with its first kernels, before the activation.
MLP = "mlp"
# The results of all other products: queries, keys, values, what attention and MLP give, a router's logits.
PRODUCTS = "products"
