"""The small world of `launch/quickstart.sh`: word problems, and a base model trained from a seed."""
