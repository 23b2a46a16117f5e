"""One file a command. A command parses options, calls the engines, and prints; it decides nothing itself."""
