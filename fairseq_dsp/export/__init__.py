"""Checkpoints for others: folded into stock fairseq's shapes (`dense`), or for CTranslate2 (`ctranslate2`)."""
