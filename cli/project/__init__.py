"""New projects: the files that diffctl writes, and settings for a folder of pictures."""
