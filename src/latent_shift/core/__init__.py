"""What every room shares: errors, the axis vocabulary, configuration, seeding, safe writing. Imports no torch."""
