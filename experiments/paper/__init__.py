"""The experiments of "Auto-Encoding Variational Bayes" (arXiv 1312.6114), one command each, beside its own curves."""
