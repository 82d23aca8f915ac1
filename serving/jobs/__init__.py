"""The queue that web servers and model servers share. Knows Redis, and only here."""
