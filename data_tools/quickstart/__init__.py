"""The small world of `launch/quickstart.sh`: word problems, and a base model made from a seed."""
