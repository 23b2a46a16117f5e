"""What a container says about the Qwen2 model in it: one module for each format, one record that all of them fill."""
