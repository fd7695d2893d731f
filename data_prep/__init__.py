"""From raw text to the token shards that maxlm trains on; the command is `maxlm-prep`."""
