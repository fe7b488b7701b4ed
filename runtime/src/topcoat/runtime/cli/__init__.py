"""The command lines of topcoat.runtime; each imports engines only after parsing."""
