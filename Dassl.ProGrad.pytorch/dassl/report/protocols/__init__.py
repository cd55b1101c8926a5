"""Tables of one kind of experiment each."""
