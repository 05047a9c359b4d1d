"""What every room builds on, and nothing about retrieval: settings, errors, artifacts, the workspace, backends."""
