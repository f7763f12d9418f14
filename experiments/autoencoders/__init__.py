"""The runs behind what is told of autoencoders, one command a table or figure."""
