"""ConDU as commands: whole streams, their evaluation, the toy stream with any-order fusion and ablations."""
