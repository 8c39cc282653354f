"""HTTP only: routes, schemas, authentication, errors, health."""
