"""What our gateway costs: the same requests to it and to vLLM's own server, in turns."""
