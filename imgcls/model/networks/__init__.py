"""Networks of other makers, built as ours are: timm's, transformers', ONNX files."""
