//! Who may do what: tokens, scopes, challenges, tickets, passwords, certificates.
