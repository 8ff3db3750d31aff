"""A teacher talks with itself about each seed; what it says becomes dialogues or rejections."""
