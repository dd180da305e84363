"""Reading and writing files: checksummed JSON, JSON Lines, files for their owner's eyes only.

Internal. Scorers and certificates are kept with it; it knows nothing of what they mean.
"""
