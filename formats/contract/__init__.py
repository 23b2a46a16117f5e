"""The records that engines, judge and command line share: names and shapes, no arithmetic."""
