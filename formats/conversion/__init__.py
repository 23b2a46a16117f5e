"""From one container to another: what each tensor becomes, the metadata carried over, and the census of both sides."""
