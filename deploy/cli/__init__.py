"""The commands, one file a group; nothing stands on them."""
