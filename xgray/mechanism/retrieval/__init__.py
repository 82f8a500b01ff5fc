"""Bilingual sentence retrieval, and its correlation with the effect of tuning in other languages."""
