"""Pictures drawn with guidance methods or interventions, compared seed by seed."""
