"""What the tests share: models, cases, checks of rules, peers."""
