-- No id has two usage records, over all gateways.
DROP INDEX mintage.usage_id;
CREATE UNIQUE INDEX usage_id ON mintage.usage (id);

-- The gateway that sends a message, until when unless it says so again.
ALTER TABLE mintage.outbox
    ADD COLUMN claimed_by    int8 REFERENCES mintage.stream,
    ADD COLUMN claimed_until timestamptz;

-- Idempotency keys of running requests. A row of a gateway that has ended, or begun anew, counts for nothing.
CREATE TABLE mintage.answering (
    scope       text NOT NULL,
    key         text NOT NULL,
    body_digest bytea NOT NULL CHECK (length(body_digest) = 32),
    stream      int8 NOT NULL REFERENCES mintage.stream,
    epoch       int8 NOT NULL,
    PRIMARY KEY (scope, key)
);

-- Limits that gateways divide among themselves. `level`: of a rate, what has flowed in, in 1/60,000 of what is counted;
-- of a budget, what was used before it was divided; of requests in flight, 0.
CREATE TABLE mintage.allowance (
    name  text PRIMARY KEY,
    level numeric(38, 0) NOT NULL,
    at_ms int8 NOT NULL
);

-- Of totals (budgets, requests in flight), what each gateway has, used or not. Rates just flow out.
CREATE TABLE mintage.allowance_slice (
    name   text NOT NULL REFERENCES mintage.allowance ON DELETE CASCADE,
    stream int8 NOT NULL REFERENCES mintage.stream,
    epoch  int8 NOT NULL,
    leased numeric(38, 0) NOT NULL,
    PRIMARY KEY (name, stream)
);
