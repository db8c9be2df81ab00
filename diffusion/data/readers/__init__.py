"""Files of strangers as rows of images: arrays, archives, folders, pictures."""
