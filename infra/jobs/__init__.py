"""Jobs for a Ray cluster: `submit` sends one, `package` is what it takes, `follow` its log."""
