"""Jobs for a Ray cluster: `submit` sends one and follows it, `package` is what it takes along."""
