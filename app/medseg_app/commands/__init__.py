"""One module per command: the work behind the arguments, without torch until it is needed."""
