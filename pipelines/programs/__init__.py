"""The steps that group programs are made of, by what they do."""
