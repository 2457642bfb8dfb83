CREATE TABLE entry (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    customer TEXT NOT NULL, resource TEXT NOT NULL, feature TEXT NOT NULL,
    state TEXT NOT NULL,
    amount REAL NOT NULL,
    is_set INTEGER NOT NULL DEFAULT 0,
    used_at REAL NOT NULL,
    until REAL DEFAULT 0,               -- end of the lease, NULL while a person must decide
    batch TEXT,
    reason TEXT NOT NULL DEFAULT '',
    event TEXT,                         -- JSON: name, idempotency key, dimensions
    attempts INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "entry" VALUES(1,'ann','','dead','dead',1.0,0,1767225600.0,1767225633.75,NULL,'feature_id: unknown',NULL,1);
INSERT INTO "entry" VALUES(2,'ann','','waits','uncertain',2.5,0,1767225601.25,NULL,NULL,'deadline passed',NULL,1);
INSERT INTO "entry" VALUES(3,'ann','','due','uncertain',3.00000000000000044408e-01,0,1767225602.5,1767225623.75,NULL,'no answer',NULL,1);
INSERT INTO "entry" VALUES(4,'ann','site-01','sending','sending',7.0,1,1767225605.0,1767225636.25,'65f4acf296c67bea2893fba182f51eac','',NULL,1);
INSERT INTO "entry" VALUES(5,'bob','','templates','unsent',4.0,0,1767225607.5,0.0,NULL,'','{"name": "login", "idempotency_key": "login-1", "dimensions": {"user": "u-1", "n": 1.5, "b": true}}',0);
INSERT INTO "entry" VALUES(6,'bob','','templates','unsent',-2.0,0,1767225608.75,0.0,NULL,'',NULL,0);
INSERT INTO "entry" VALUES(7,'bob','','late','unsent',6.0,0,1767225621.25,0.0,NULL,'',NULL,0);
CREATE TABLE hold (
    customer TEXT NOT NULL, resource TEXT NOT NULL, feature TEXT NOT NULL,
    id TEXT NOT NULL, amount REAL NOT NULL, taken_at REAL NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (customer, resource, feature, id)
) WITHOUT ROWID;
INSERT INTO "hold" VALUES('ann','','templates','c9fb325b83b85abe',2.0,1767225610.0,1767225670.0);
INSERT INTO "hold" VALUES('ann','site-01','templates','c9fb325b83b85abe',1.5,1767225610.0,1767225670.0);
INSERT INTO "hold" VALUES('bob','','templates','3b61246003810a0a',3.0,1767225611.25,1767225616.25);
CREATE TABLE late (id INTEGER PRIMARY KEY CHECK (id = 1), holds INTEGER NOT NULL);
INSERT INTO "late" VALUES(1,1);
CREATE TABLE ticket (id INTEGER PRIMARY KEY CHECK (id = 1), last INTEGER NOT NULL);
INSERT INTO "ticket" VALUES(1,7);
CREATE TABLE usage (
    customer TEXT NOT NULL, resource TEXT NOT NULL, feature TEXT NOT NULL,
    used REAL NOT NULL, period_start REAL NOT NULL, ticket INTEGER NOT NULL,
    settled_at REAL NOT NULL DEFAULT 0, -- when the sidecar last acknowledged a report of the key
    PRIMARY KEY (customer, resource, feature)
) WITHOUT ROWID;
INSERT INTO "usage" VALUES('ann','','dead',3.0,1000.0,2,0.0);
INSERT INTO "usage" VALUES('ann','','templates',3.0,1000.0,4,0.0);
INSERT INTO "usage" VALUES('ann','site-01','templates',3.0,1000.0,5,0.0);
INSERT INTO "usage" VALUES('bob','','late',3.0,1000.0,7,0.0);
INSERT INTO "usage" VALUES('bob','','templates',3.0,1000.0,6,0.0);
CREATE INDEX entry_by_key ON entry (customer, resource, feature, state);
CREATE INDEX entry_by_state ON entry (state, id);
CREATE INDEX entry_by_batch ON entry (batch) WHERE batch IS NOT NULL;
PRAGMA application_id = 0x53474C47;
PRAGMA user_version = 2;
