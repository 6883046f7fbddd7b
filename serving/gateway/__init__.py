"""What clients reach: OpenAI's API, checked before any engine sees a byte."""
