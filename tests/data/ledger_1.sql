CREATE TABLE entry (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    customer TEXT NOT NULL, resource TEXT NOT NULL, feature TEXT NOT NULL,
    state TEXT NOT NULL,
    amount REAL NOT NULL,
    is_set INTEGER NOT NULL DEFAULT 0,
    used_at REAL NOT NULL,
    until REAL NOT NULL DEFAULT 0,
    batch TEXT, reason TEXT
) STRICT;
CREATE INDEX entry_by_key ON entry (customer, resource, feature, state);
CREATE INDEX entry_by_state ON entry (state, id);
CREATE INDEX entry_by_batch ON entry (batch) WHERE batch IS NOT NULL;
CREATE TABLE usage (
    customer TEXT NOT NULL, resource TEXT NOT NULL, feature TEXT NOT NULL,
    used REAL NOT NULL, period_start REAL NOT NULL, ticket INTEGER NOT NULL,
    PRIMARY KEY (customer, resource, feature)
) STRICT, WITHOUT ROWID;
CREATE TABLE ticket (id INTEGER PRIMARY KEY CHECK (id = 1), last INTEGER NOT NULL) STRICT;
INSERT INTO ticket VALUES (1, 41);
INSERT INTO usage VALUES ('ann', '', 'templates', 3, 0, 40);
INSERT INTO entry (customer, resource, feature, state, amount, is_set, used_at, until, batch, reason) VALUES
    ('ann', '', 'templates', 'held', 1, 0, 1000, 1060, NULL, NULL),
    ('ann', '', 'templates', 'sending', 2, 0, 1001, 1030, 'b', NULL),
    ('ann', 'site-01', 'templates', 'sending', 7, 1, 1002, 1030, 'b', NULL),
    ('ann', '', 'templates', 'unsent', 0.5, 0, 1003, 0, NULL, NULL),
    ('bob', '', 'templates', 'dead', 5, 0, 1004, 0, NULL, 'feature_id: unknown');
PRAGMA application_id = 0x53474C47;
PRAGMA user_version = 1;
