"""The runs behind what is taught of variational autoencoders, one command a table or figure."""
