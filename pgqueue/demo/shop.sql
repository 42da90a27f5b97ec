-- The tables of the demo. No unique constraint keeps an effect from happening twice: if pgqueue let it, it would be seen.

-- The first story.
CREATE TABLE bank (name text PRIMARY KEY, cents bigint NOT NULL);
CREATE TABLE bank_task (name text NOT NULL, cents bigint NOT NULL, done boolean NOT NULL DEFAULT false);

-- The second story.
CREATE TABLE shop_order (number integer NOT NULL);
CREATE TABLE warehouse (number integer NOT NULL);

-- The shop in the storm.
CREATE TABLE orders (
    number   integer PRIMARY KEY,
    customer text NOT NULL,
    item     text NOT NULL,
    quantity integer NOT NULL,
    cents    bigint NOT NULL
);
CREATE TABLE account (customer text PRIMARY KEY, cents bigint NOT NULL DEFAULT 0);
CREATE TABLE ledger (number integer NOT NULL, customer text NOT NULL, cents bigint NOT NULL);
CREATE TABLE stock (item text PRIMARY KEY, quantity integer NOT NULL);
CREATE TABLE shipment (number integer NOT NULL, item text NOT NULL, quantity integer NOT NULL, parcel text NOT NULL);
