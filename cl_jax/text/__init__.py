"""Text as a data source: documents of several domains, as packed rows of tokens. Host only, NumPy only."""
