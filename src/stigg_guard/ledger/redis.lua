-- The steps of the Redis ledger, each atomic, and all in one script so that one hash names it.
--
-- ARGV: the step, the present time in seconds (empty: the server's own), and what the step needs. The keys of a call
-- share one hash tag: those of one customer, or those of the queue. Numbers leave as %.17g, which is exact.

local step, present = ARGV[1], tonumber(ARGV[2])
local call = redis.call
local HOLDS_KEPT_SECONDS = 86400

local function now()
    if not present then
        local time = call('TIME')
        present = tonumber(time[1]) + tonumber(time[2]) / 1000000
    end
    return present
end

local function exact(number) return string.format('%.17g', number) end

-- A customer's keys ---------------------------------------------------------------------------------------------------

local usage, entries, live, counters, tallies = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local states = {
    held = KEYS[6], unsent = KEYS[7], event = KEYS[8], sending = KEYS[9], uncertain = KEYS[10], dead = KEYS[11],
}
local EVENT = '~' -- begins the last part of an event's id, and comes after all that begins the other ids of its key

local function name_of(id) return string.match(id, '^[^/]*/[^/]*') end

local function load(hash, field)
    local packed = call('HGET', hash, field)
    return packed and cmsgpack.unpack(packed)
end

local function load_held(id)
    local entry = load(entries, id)
    return entry and entry.state == 'held' and entry
end

local function index_of(entry)
    if entry.state == 'unsent' and entry.event then return states.event end
    return states[entry.state]
end

-- Orders the entries of a customer, and as nearly as hosts' clocks agree those of different customers.
local function next_number(token)
    local number = math.max(tonumber(token), tonumber(call('HGET', counters, 'number') or 0) + 1)
    call('HSET', counters, 'number', exact(number))
    return number
end

local function is_event(id) return string.find(id, '^[^/]*/[^/]*/' .. EVENT) end

-- The entries of a key that are not dead, in the order of their ids; either its events or all others.
local function ids_of(name, events)
    local first, last = name .. '/', name .. '/' .. EVENT
    if events then first, last = last, name .. '0' end -- '0' comes after '/'
    return call('ZRANGEBYLEX', live, '[' .. first, '(' .. last)
end

-- Events do not add up, so there may be many of one key: what they come to is kept as a sum. It begins anew whenever
-- none is left, and so do its rounding errors.
local function tally(id, entry, sign)
    local name = name_of(id)
    local sum = load(tallies, name) or {number = 0, under_way = 0, pending = 0, since = 0}
    sum.number = sum.number + sign
    if entry.state ~= 'unsent' then sum.under_way = sum.under_way + sign end
    if entry.used_at >= sum.since then sum.pending = sum.pending + sign * math.max(entry.amount, 0) end
    if sum.number > 0 then
        call('HSET', tallies, name, cmsgpack.pack(sum))
    else
        call('HDEL', tallies, name)
    end
end

local function pending_events(name, start)
    local sum = load(tallies, name)
    if not sum then return 0, false end
    if sum.since ~= start then
        sum.since, sum.pending = start, 0
        for _, id in ipairs(ids_of(name, true)) do
            local entry = load(entries, id)
            if entry.used_at >= start then sum.pending = sum.pending + math.max(entry.amount, 0) end
        end
        call('HSET', tallies, name, cmsgpack.pack(sum))
    end
    return sum.pending, sum.under_way > 0
end

local function update(id, entry)
    local timed = entry.state == 'held' or entry.state == 'uncertain'
    call('HSET', entries, id, cmsgpack.pack(entry))
    call('ZADD', index_of(entry), exact(timed and entry.due or entry.number), id)
end

local function add(id, entry)
    update(id, entry)
    if entry.state == 'dead' then return end
    call('ZADD', live, 0, id)
    if entry.event then tally(id, entry, 1) end
end

local function forget(id, entry)
    call('ZREM', index_of(entry), id)
    call('HDEL', entries, id)
    if entry.state == 'dead' then return end
    call('ZREM', live, id)
    if entry.event then tally(id, entry, -1) end
end

local function move(id, entry, state)
    forget(id, entry)
    entry.state = state
    if state ~= 'sending' then entry.batch = nil end
    add(id, entry)
end

local function told(id, entry)
    return {
        id, entry.state, exact(entry.amount), entry.is_set and 1 or 0, exact(entry.used_at), entry.event or '',
        entry.reason or '', entry.attempts or 0, exact(entry.number),
    }
end

local function forget_old_holds()
    local old = call('ZRANGEBYSCORE', states.held, '-inf', exact(now() - HOLDS_KEPT_SECONDS), 'LIMIT', 0, 100)
    for _, id in ipairs(old) do forget(id, load(entries, id)) end
end

-- Nothing is queued for the customer as of this token: a step that queued it with this token or an older one must
-- queue it again, because the queue is about to forget it.
local function void(token)
    if tonumber(token) > tonumber(call('HGET', counters, 'void') or 0) then call('HSET', counters, 'void', token) end
end

local function voided(token)
    local void = tonumber(call('HGET', counters, 'void') or 0)
    return tonumber(token) <= void and void
end

-- What the entries of a key come to in the period from `start` on.
local function standing(name, start)
    local time, sum = now(), {held = 0, total = 0}
    sum.pending, sum.under_way = pending_events(name, start)
    for _, id in ipairs(ids_of(name, false)) do
        local entry = load(entries, id)
        if entry.state == 'held' then
            if entry.due > time then sum.held = sum.held + entry.amount end
        else
            sum.under_way = sum.under_way or entry.state ~= 'unsent'
            if entry.used_at >= start then
                if entry.is_set then
                    sum.total = math.max(sum.total, entry.amount)
                else
                    sum.pending = sum.pending + math.max(entry.amount, 0)
                end
            end
        end
    end
    return sum
end

local function newest_unsent(name)
    local newest, newest_id
    for _, id in ipairs(ids_of(name, false)) do
        local entry = load(entries, id)
        if entry.state == 'unsent' and not (newest and newest.number > entry.number) then
            newest, newest_id = entry, id
        end
    end
    return newest, newest_id
end

-- The usage to count from: the ledger's own, or the snapshot's if that is newer.
local function believed(row, claim, under_way, grace)
    if not row then
        return {used = claim.known, start = claim.start, ticket = claim.ticket, settled_at = 0}
    end
    if claim.start < row.start then return row end
    if claim.start == row.start then
        if claim.ticket <= row.ticket or under_way then return row end
        if claim.known < row.used and claim.fetched_at < row.settled_at + grace then return row end
    end
    local ticket = math.max(row.ticket, claim.ticket)
    return {used = claim.known, start = claim.start, ticket = ticket, settled_at = row.settled_at}
end

local function claim_at(i)
    return {
        name = ARGV[i], amount = tonumber(ARGV[i + 1]), limit = tonumber(ARGV[i + 2]), known = tonumber(ARGV[i + 3]),
        start = tonumber(ARGV[i + 4]), ticket = tonumber(ARGV[i + 5]), fetched_at = tonumber(ARGV[i + 6]),
    }
end

local function use_at(i)
    return {
        name = ARGV[i], amount = tonumber(ARGV[i + 1]), is_set = ARGV[i + 2] == '1', start = tonumber(ARGV[i + 3]),
        event = ARGV[i + 4] ~= '' and ARGV[i + 4] or nil,
    }
end

local function add_to_newest(name, amount, start)
    local entry, id = newest_unsent(name)
    if not entry or entry.is_set or entry.used_at < start or (entry.amount > 0) ~= (amount > 0) then return false end
    entry.amount, entry.used_at = entry.amount + amount, now()
    update(id, entry)
    return true
end

local function record(token, hold, number, use)
    if use.amount == 0 and not use.is_set then return end
    if not use.is_set and not use.event and add_to_newest(use.name, use.amount, use.start) then return end
    add(use.name .. '/' .. (use.event and EVENT or '') .. hold .. '.' .. number, {
        state = 'unsent', amount = use.amount, is_set = use.is_set, event = use.event, used_at = now(),
        number = next_number(token),
    })
end

local function usage_with_pending(name, start)
    local row = load(usage, name) or {used = 0, start = start}
    local sum = standing(name, row.start)
    return exact(math.max(row.used, sum.total) + sum.pending)
end

-- The keys of which no usage may be sent now, because a report of theirs is under way or waits for a decision.
local function blocked_names()
    local blocked = {}
    for _, id in ipairs(call('ZRANGE', states.sending, 0, -1)) do
        if not is_event(id) then blocked[name_of(id)] = true end
    end
    for _, id in ipairs(call('ZRANGEBYSCORE', states.uncertain, '-inf', '(inf')) do
        if not is_event(id) then blocked[name_of(id)] = true end
    end
    return blocked
end

-- The oldest entries that may be sent, one of a key unless they are events; and whether there are more.
local function sendable(kind, room)
    if kind == 'event' then
        local found = call('ZRANGE', states.event, 0, room - 1)
        return found, call('ZCARD', states.event) > #found
    end
    local found, blocked = {}, blocked_names()
    for _, id in ipairs(call('ZRANGE', states.unsent, 0, -1)) do
        local name = name_of(id)
        if not blocked[name] then
            if #found == room then return found, true end
            blocked[name] = true
            table.insert(found, id)
        end
    end
    return found, false
end

local function mark(ids, batch)
    local ticket = #ids > 0 and call('HINCRBY', counters, 'ticket', 1)
    for _, id in ipairs(ids) do
        local entry, name = load(entries, id), name_of(id)
        local row = load(usage, name)
        entry.batch = batch
        move(id, entry, 'sending')
        if row then
            row.ticket = ticket
            call('HSET', usage, name, cmsgpack.pack(row))
        end
    end
end

local function in_batch(batch)
    local found = {}
    for _, id in ipairs(call('ZRANGE', states.sending, 0, -1)) do
        local entry = load(entries, id)
        if entry.batch == batch then table.insert(found, {id, entry}) end
    end
    return found
end

-- Those of these batches of which this customer has no report left.
local function finished(batches)
    for _, id in ipairs(next(batches) and call('ZRANGE', states.sending, 0, -1) or {}) do
        batches[load(entries, id).batch] = nil
    end
    local names = {}
    for batch in pairs(batches) do table.insert(names, batch) end
    return names
end

local function learn(id, entry, current, start, amount)
    local name = name_of(id)
    local row = load(usage, name)
    -- Without either, nothing is known of the usage before it; the next snapshot will tell.
    if not row and not current and not entry.is_set then return end
    row = row or {used = 0, start = start}
    if current then
        if not (0 < start and start < row.start) then row.used = current end
    elseif entry.used_at >= row.start then
        row.used = entry.is_set and amount or row.used + amount
    end
    row.start, row.settled_at = math.max(row.start, start), now()
    row.ticket = call('HINCRBY', counters, 'ticket', 1)
    call('HSET', usage, name, cmsgpack.pack(row))
end

local steps = {}

-- token, hold, ttl, grace, {name, amount, limit, known, start, ticket, fetched_at}...
function steps.hold()
    local token, hold, ttl, grace = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
    local again = voided(token)
    if again then return again end
    forget_old_holds()
    local rows, changed, taken, claims = {}, {}, {}, {}
    for i = 7, #ARGV, 7 do
        local claim = claim_at(i)
        local sum = standing(claim.name, claim.start)
        local known = rows[claim.name] or load(usage, claim.name)
        local row = believed(known, claim, sum.under_way, grace)
        if row ~= known then changed[claim.name] = row end
        local counted = math.max(row.used, sum.total) + sum.held + sum.pending + (taken[claim.name] or 0)
        if claim.limit and counted + claim.amount > claim.limit then return {#claims, exact(counted)} end
        rows[claim.name], taken[claim.name] = row, (taken[claim.name] or 0) + claim.amount
        table.insert(claims, claim)
    end
    for name, row in pairs(changed) do call('HSET', usage, name, cmsgpack.pack(row)) end
    local time = now()
    for i, claim in ipairs(claims) do
        add(claim.name .. '/' .. hold .. '.' .. i, {
            state = 'held', amount = claim.amount, used_at = time, due = time + ttl, number = next_number(token),
        })
    end
    return {}
end

-- ttl, id...
function steps.renew()
    local due = now() + tonumber(ARGV[3])
    for i = 4, #ARGV do
        local entry = load_held(ARGV[i])
        if entry then
            entry.due = due
            update(ARGV[i], entry)
        end
    end
    return {}
end

-- token, hold, seconds to remember it for, number of held ids, id..., {name, amount, is_set, start, event}...
function steps.commit()
    local token, hold, ended = ARGV[3], ARGV[4], KEYS[12]
    local again = voided(token)
    if again then return again end
    local uses = 7 + tonumber(ARGV[6])
    local late = false
    if call('SET', ended, '1', 'EX', ARGV[5], 'NX') then
        local time = now()
        for i = 7, uses - 1 do
            local entry = load_held(ARGV[i])
            late = late or not entry or entry.due <= time
            if entry then forget(ARGV[i], entry) end
        end
        for i = uses, #ARGV, 5 do record(token, hold, (i - uses) / 5 + 1, use_at(i)) end
    end
    local answer = {late and 1 or 0}
    for i = uses, #ARGV, 5 do table.insert(answer, usage_with_pending(ARGV[i], tonumber(ARGV[i + 3]))) end
    return answer
end

-- id...
function steps.release()
    for i = 3, #ARGV do
        local entry = load_held(ARGV[i])
        if entry then forget(ARGV[i], entry) end
    end
    return {}
end

-- token or nothing, batch, end of its lease, room for more, kind
function steps.take()
    local token, batch, until_, room, kind = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
    local more = room > 0
    -- Once the lease ended, somebody else may have found the batch and be sending it: it must not grow any more.
    if room > 0 and now() < until_ then
        local found
        found, more = sendable(kind, room)
        mark(found, batch)
        if not more then void(token) end
    end
    local answer = {more and 1 or 0, call('HLEN', entries)}
    for _, report in ipairs(in_batch(batch)) do
        local id, entry = report[1], report[2]
        entry.attempts = (entry.attempts or 0) + 1
        update(id, entry)
        table.insert(answer, told(id, entry))
    end
    return answer
end

-- token, {id, current usage or nothing, start of its period, amount that was sent}...
function steps.acknowledge()
    local again = voided(ARGV[3])
    if again then return again end
    local batches = {}
    for i = 4, #ARGV, 4 do
        local entry, amount = load(entries, ARGV[i]), tonumber(ARGV[i + 3])
        if entry then
            if entry.batch then batches[entry.batch] = true end
            learn(ARGV[i], entry, tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), amount)
            if entry.amount == amount then
                forget(ARGV[i], entry)
            else
                -- What was added since it was sent, by somebody who put it back, stays.
                entry.amount = entry.amount - amount
                update(ARGV[i], entry)
            end
        end
    end
    return {0, finished(batches)}
end

-- token, states to leave, state to enter or nothing to be forgotten, seconds until a decision, reason, id...
function steps.change()
    local token, from, to, seconds, reason = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7]
    local again = voided(token)
    if again then return again end
    local batches, changed = {}, 0
    for i = 8, #ARGV do
        local entry = load(entries, ARGV[i])
        if entry and string.find(from, entry.state, 1, true) then
            changed = changed + 1
            if entry.batch then batches[entry.batch] = true end
            if to == '' then
                forget(ARGV[i], entry)
                -- The sidecar may have counted it: no snapshot from before now may lower the usage.
                local name = name_of(ARGV[i])
                local row = load(usage, name)
                if row then
                    row.ticket, row.settled_at = call('HINCRBY', counters, 'ticket', 1), now()
                    call('HSET', usage, name, cmsgpack.pack(row))
                end
            else
                if to == 'unsent' then entry.attempts = 0 end
                entry.due = seconds and now() + seconds or math.huge
                entry.reason = reason
                move(ARGV[i], entry, to)
            end
        end
    end
    return {changed, finished(batches)}
end

-- old batch, end of the new ones' lease, {id, new batch}...; whether that was still in time
function steps.split()
    if now() >= tonumber(ARGV[4]) then return 0 end
    for i = 5, #ARGV, 2 do
        local entry = load(entries, ARGV[i])
        if entry and entry.batch == ARGV[3] then
            entry.batch, entry.attempts = ARGV[i + 1], 0
            update(ARGV[i], entry)
        end
    end
    return 1
end

-- token, size, lease; the time when the next one is due, if any, comes first
function steps.take_uncertain()
    local time = now()
    local answer = {''}
    for _, id in ipairs(call('ZRANGEBYSCORE', states.uncertain, '-inf', exact(time), 'LIMIT', 0, ARGV[4])) do
        local entry = load(entries, id)
        entry.due = time + tonumber(ARGV[5])
        update(id, entry)
        table.insert(answer, told(id, entry))
    end
    local soonest = call('ZRANGEBYSCORE', states.uncertain, '-inf', '(inf', 'WITHSCORES', 'LIMIT', 0, 1)
    answer[1] = soonest[2] or ''
    void(ARGV[3])
    return answer
end

-- name
function steps.known()
    local row = load(usage, ARGV[3])
    return row and exact(row.used)
end

-- limit, state...
function steps.list()
    local time, answer = now(), {}
    for i = 4, #ARGV do
        local indexes = ARGV[i] == 'unsent' and {states.unsent, states.event} or {states[ARGV[i]]}
        local after = ARGV[i] == 'held' and '(' .. exact(time) or '-inf'
        for _, index in ipairs(indexes) do
            for _, id in ipairs(call('ZRANGEBYSCORE', index, after, '+inf', 'LIMIT', 0, ARGV[3])) do
                table.insert(answer, told(id, load(entries, id)))
            end
        end
    end
    return answer
end

-- token
function steps.count()
    forget_old_holds()
    local kept = call('HLEN', entries)
    if kept == 0 then void(ARGV[3]) end
    return {
        kept,
        call('ZCOUNT', states.held, '(' .. exact(now()), '+inf'),
        call('ZCARD', states.unsent) + call('ZCARD', states.event),
        call('ZCARD', states.sending), call('ZCARD', states.uncertain), call('ZCARD', states.dead),
    }
end

-- The queue's keys ----------------------------------------------------------------------------------------------------

local customers, leases = KEYS[1], KEYS[2]
local queues = {unsent = KEYS[3], event = KEYS[4], uncertain = KEYS[5]}

local function with_tokens(answer, names)
    for _, customer in ipairs(names) do
        table.insert(answer, customer)
        table.insert(answer, call('ZSCORE', customers, customer) or '0')
    end
    return answer
end

-- lease, size, name for a new batch; its customers are kept in KEYS[6]
function steps.open()
    local time, size, batch = now(), tonumber(ARGV[4]), ARGV[5]
    local until_ = exact(time + tonumber(ARGV[3]))
    local overdue = call('ZRANGEBYSCORE', leases, '-inf', exact(time), 'LIMIT', 0, 1)[1]
    if overdue then
        call('ZADD', leases, until_, overdue)
        return {overdue, until_, ''}
    end
    for _, kind in ipairs({'unsent', 'event'}) do
        local found = call('ZRANGE', queues[kind], 0, size - 1)
        if #found > 0 then
            call('ZADD', leases, until_, batch)
            call('SADD', KEYS[6], unpack(found))
            return with_tokens({batch, until_, kind}, found)
        end
    end
    return false
end

-- batch, customer... that have nothing left in it; its customers are kept in KEYS[6]
function steps.leave()
    for i = 4, #ARGV do call('SREM', KEYS[6], ARGV[i]) end
    if call('EXISTS', KEYS[6]) == 0 then call('ZREM', leases, ARGV[3]) end
    return {}
end

-- batch, seconds
function steps.postpone()
    local due = exact(now() + tonumber(ARGV[4]))
    call('ZADD', leases, 'XX', due, ARGV[3])
    return {}
end

-- lease, batch, customer; the customers of the batch are kept in KEYS[6]
function steps.lease()
    local until_ = exact(now() + tonumber(ARGV[3]))
    call('ZADD', leases, until_, ARGV[4])
    call('SADD', KEYS[6], ARGV[5])
    return until_
end

function steps.customers()
    return call('ZRANGE', customers, 0, -1, 'WITHSCORES')
end

-- size
function steps.due()
    return with_tokens({}, call('ZRANGEBYSCORE', queues.uncertain, '-inf', exact(now()), 'LIMIT', 0, ARGV[3]))
end

-- queue or nothing, {customer, token, time to come back or nothing, entries kept}...
function steps.dequeue()
    local queue = queues[ARGV[3]]
    for i = 4, #ARGV, 4 do
        local customer, token, back, kept = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
        if tonumber(call('ZSCORE', customers, customer) or 0) == tonumber(token) then
            if queue and back ~= '' then call('ZADD', queue, back, customer) end
            if queue and back == '' then call('ZREM', queue, customer) end
            if kept == '0' then call('ZREM', customers, customer) end
        end
    end
    return {}
end

return steps[step]()
