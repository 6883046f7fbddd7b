"""What runs in a decoder process: media in, the same media out as plain clean bytes.

The gateway imports nothing of this but the framing, and nothing here imports the gateway: a process starts in
a second and holds nothing worth stealing.
"""
