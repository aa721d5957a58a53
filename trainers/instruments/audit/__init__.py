"""Audits of networks that are not ours: which quarter turns and flips their sampling grid keeps."""
