"""The machine: files that survive a crash, folders kept between processes, processors and threads."""
