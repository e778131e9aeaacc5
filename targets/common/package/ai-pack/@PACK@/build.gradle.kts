plugins {
    id("com.android.ai-pack")
}

aiPack {
    packName = "@PACK@"
    dynamicDelivery {
        deliveryType = "install-time"
    }
}
