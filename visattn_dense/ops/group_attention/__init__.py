"""Softmax attention of groups of queries over groups of keys that lie in a map."""
